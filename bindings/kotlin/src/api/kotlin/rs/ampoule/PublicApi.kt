package rs.ampoule

import java.io.File
import kotlinx.validation.api.dump
import kotlinx.validation.api.filterOutNonPublic
import kotlinx.validation.api.loadApiFromJvmClasses

/** What apps see of compiled classes, in the format of Kotlin's binary compatibility validator. */
internal fun publicApi(classes: File, isMeant: (File) -> Boolean = { true }): String =
    classes.walk().filter { it.extension == "class" && isMeant(it) }.sorted().map(File::inputStream).loadApiFromJvmClasses()
        .filterOutNonPublic(listOf("rs.ampoule.ffi")).dump(StringBuilder()).toString()

/** What a committed file says of it; with AMPOULE_WRITE set, the file is written first. */
internal fun committedApi(file: File, api: String): String {
    if (System.getenv("AMPOULE_WRITE") != null) {
        file.parentFile.mkdirs()
        file.writeText(api)
    }
    return if (file.exists()) file.readText() else "$file is not there; AMPOULE_WRITE=1 scripts/kotlin.sh writes it"
}
